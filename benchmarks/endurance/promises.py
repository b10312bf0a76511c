"""What is promised, the faults that are injected, and the tests that try it, by file and name."""

from typing import NamedTuple


class Promise(NamedTuple):
    """A promise of docs/reliability.md.

    Args:
        text: The promise.
        fault: What is done to break it.
        tests: Beginnings of the names of tests below `tests/faults`, now and when
            docs/results/reliability.json was measured; `kills` and `fits` are those parts of the
            endurance benchmark.
    """

    text: str
    fault: str
    tests: tuple[str, ...]


_KILLED = "a killed run ends bit for bit where an uninterrupted one does"
PROMISES = (
    Promise(_KILLED, "SIGKILL at random moments, all architectures", ("kills",)),
    Promise(
        _KILLED,
        "SIGKILL three times, with each kind of schedule, validation, precision and limit",
        ("test_resume.py::test_a_run",),
    ),
    Promise(
        _KILLED,
        "SIGKILL once, every shipped architecture",
        ("test_resume.py::test_a_k", "test_architectures.py"),
    ),
    Promise(
        _KILLED,
        "SIGKILL while a file is written or renamed, in validation, in the final evaluation",
        (
            "test_moments.py::test_a_run_that_was_killed",
            *("test_moments.py::test_a_run_that_is", "test_moments.py::test_a_run_that_ended"),
        ),
    ),
    Promise(
        "a moved run is resumed", "its folder is moved", ("test_moments.py::test_a_run_that_was_m",)
    ),
    Promise(
        "a lengthened run is the longer run",
        "`max_epochs` or `max_steps` raised, inside an epoch and a block too",
        (
            "test_moments.py::test_a_longer",
            "test_moments.py::test_more_steps",
            "test_refusals.py::test_a_longer",
        ),
    ),
    Promise(
        "a run is not resumed with other settings; the error names them",
        "changed settings, fewer epochs, weights alone, another framework, two processes at once",
        (
            "test_refusals.py::test_a_changed",
            "test_refusals.py::test_a_change_of",
            "test_refusals.py::test_a_refused",
            "test_refusals.py::test_an_edited",
            "test_refusals.py::test_a_run_without",
            "test_refusals.py::test_fewer",
            "test_refusals.py::test_a_checkpoint_of",
            "test_refusals.py::test_a_keras",
            "test_refusals.py::test_no_run",
            "test_refusals.py::test_a_finished",
            "test_moments.py::test_two_processes",
        ),
    ),
    Promise(
        "changes that the user allows are accepted",
        "`--allow_changes true`, and settings that change no result",
        (
            "test_refusals.py::test_a_change_that",
            "test_refusals.py::test_changes_are",
            "test_refusals.py::test_what_does_not",
        ),
    ),
    Promise(
        "a damaged checkpoint falls back to the one before",
        "a bit flipped, cut, emptied, removed, code hidden in it; both damaged",
        (
            "test_refusals.py::test_a_damaged",
            "test_refusals.py::test_where_both",
            "test_refusals.py::test_a_checkpoint_that",
        ),
    ),
    Promise(
        "signals finish the step, save, and exit 143 or 130",
        "SIGTERM, Ctrl-C once and twice, in steps, validation, saving and evaluation",
        ("test_signals.py",),
    ),
    Promise(
        "output that cannot be written ends no training",
        "a full disk, closed streams, a terminal and a pipe that are lost in the second epoch",
        ("test_streams.py",),
    ),
    Promise(
        "a pre-empted SLURM job resumes by itself",
        "SIGUSR1, with a stand-in for `scontrol`",
        ("test_slurm.py",),
    ),
    Promise(
        "a file is the old one or the new one",
        "its writer killed at each call; RLIMIT_FSIZE; a full tmpfs; a folder of another user",
        ("test_files.py",),
    ),
    Promise(
        "checkpoints run no code, and changed bytes are detected",
        "10,150 random changes of a file, each a flip, cut, insertion or overwriting; hidden code",
        ("test_fuzz_checkpoints.py",),
    ),
    Promise(
        "data files have known digests, or are refused",
        "files truncated, swapped, flipped, of wrong length; disks full, closed and shared",
        ("test_data.py", "test_fuzz_data.py"),
    ),
    Promise(
        "a download gives whole files or an error",
        "a mirror that cuts or falls silent; up to four processes at once",
        ("test_sharing.py",),
    ),
    Promise(
        "any config is accepted, or refused in one line",
        "3,060 random configs, 3,060 random texts",
        ("test_fuzz_configs.py",),
    ),
    Promise(
        "several processes are one run: each image once, one log, exact resume",
        "two processes and two torchrun nodes, killed, stopped, unequal batches",
        (
            "test_ranks.py",
            "test_launchers.py::test_two",
            "test_launchers.py::test_a_signal",
            "test_launchers.py::test_sigterm",
            "test_launchers.py::test_ranks",
            "test_launchers.py::test_forked",
            *("test_processes.py", "test_torchrun.py", "test_launched.py::test_ctrl"),
            *("test_launched.py::test_sigterm", "test_launched.py::test_whoever"),
        ),
    ),
    Promise(
        "a process that dies ends the run with an error",
        "SIGKILL of a process, and of the first one",
        (
            "test_launchers.py::test_the_loss",
            *("test_launched.py::test_a_process", "test_launched.py::test_all"),
        ),
    ),
    Promise(
        "NaN or infinity stops the run",
        "NaN in a batch, infinity in a weight, a learning rate of 1e38",
        (
            "test_numbers.py::test_a_loss",
            "test_numbers.py::test_without",
            "test_numbers.py::test_weights",
            "test_numbers.py::test_a_rate",
        ),
    ),
    Promise(
        "the same seed gives the same bits",
        "the same seed twice, and another",
        ("test_numbers.py::test_the_same",),
    ),
    Promise("nothing grows in a long session", "fits in a row in one process", ("fits",)),
)
"""All promises, in the page's order."""
