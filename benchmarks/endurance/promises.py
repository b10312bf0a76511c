"""What is promised, and the faults that are injected; tests name the promise that they try."""

from typing import NamedTuple


class Promise(NamedTuple):
    """A promise of docs/reliability.md.

    Args:
        key: The argument of the mark `promise` of the tests that try it, or a part of the endurance
            benchmark, `kills` or `fits`.
        text: The promise.
        fault: What is done to break it.
    """

    key: str
    text: str
    fault: str


_KILLED = "a killed run ends bit for bit where an uninterrupted one does"
PROMISES = (
    Promise("kills", _KILLED, "SIGKILL at random moments, all architectures"),
    Promise(
        "kinds",
        _KILLED,
        "SIGKILL three times, with each kind of schedule, validation, precision and limit",
    ),
    Promise("architectures", _KILLED, "SIGKILL once, every shipped architecture"),
    Promise(
        "moments",
        _KILLED,
        "SIGKILL while a file is written or renamed, in validation, in the final evaluation",
    ),
    Promise("moved", "a moved run is resumed", "its folder is moved"),
    Promise(
        "longer",
        "a lengthened run is the longer run",
        "`max_epochs` or `max_steps` raised, inside an epoch and a block too",
    ),
    Promise(
        "settings",
        "a run is not resumed with other settings; the error names them",
        "changed settings, fewer epochs, weights alone, another framework, two processes at once",
    ),
    Promise(
        "changes",
        "changes that the user allows are accepted",
        "`--allow_changes true`, and settings that change no result",
    ),
    Promise(
        "damaged",
        "a damaged checkpoint falls back to the one before",
        "a bit flipped, cut, emptied, removed, code hidden in it; both damaged",
    ),
    Promise(
        "signals",
        "signals finish the step, save, and exit 143 or 130",
        "SIGTERM, Ctrl-C once and twice, in steps, validation, saving and evaluation",
    ),
    Promise(
        "output",
        "output that cannot be written ends no training",
        "a full disk, closed streams, a terminal and a pipe that are lost in the second epoch",
    ),
    Promise(
        "slurm",
        "a pre-empted SLURM job resumes by itself",
        "SIGUSR1, with a stand-in for `scontrol`",
    ),
    Promise(
        "files",
        "a file is the old one or the new one",
        "its writer killed at each call; RLIMIT_FSIZE; a full tmpfs; a folder of another user",
    ),
    Promise(
        "bytes",
        "checkpoints run no code, and changed bytes are detected",
        "10,150 random changes of a file, each a flip, cut, insertion or overwriting; hidden code",
    ),
    Promise(
        "data",
        "data files have known digests, or are refused",
        "files truncated, swapped, flipped, of wrong length; disks full, closed and shared",
    ),
    Promise(
        "download",
        "a download gives whole files or an error",
        "a mirror that cuts or falls silent; up to four processes at once",
    ),
    Promise(
        "configs",
        "any config is accepted, or refused in one line",
        "3,060 random configs, 3,060 random texts",
    ),
    Promise(
        "ranks",
        "several processes are one run: each image once, one log, exact resume",
        "two processes and two torchrun nodes, killed, stopped, unequal batches",
    ),
    Promise(
        "lost",
        "a process that dies ends the run with an error",
        "SIGKILL of a process, and of the first one",
    ),
    Promise(
        "numbers",
        "NaN or infinity stops the run",
        "NaN in a batch, infinity in a weight, a learning rate of 1e38",
    ),
    Promise("seed", "the same seed gives the same bits", "the same seed twice, and another"),
    Promise("fits", "nothing grows in a long session", "fits in a row in one process"),
)
"""All promises, in the page's order."""
