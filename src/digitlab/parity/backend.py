"""The only importer of TensorFlow and Keras: in a safe order, on the right backend, silently."""

import logging
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

from digitlab.terminal import redirected

Policy = Literal["float32", "float64", "mixed_float16", "mixed_bfloat16"]

POLICIES: dict[str, Policy] = {
    "32-true": "float32",
    "64-true": "float64",
    "16-mixed": "mixed_float16",
    "bf16-mixed": "mixed_bfloat16",
}
"""Keras's dtype policy for each of Lightning's precisions."""


def find_precision(precision: object) -> str:
    """Find the key in `POLICIES` of a trainer's setting `precision`, or raise ValueError."""
    name = {"None": "32-true", "32": "32-true", "64": "64-true"}.get(str(precision), str(precision))
    if name not in POLICIES:
        raise ValueError(
            f"trainer.precision is {precision}: Keras has no dtype policy for it; use one of "
            f"{', '.join(POLICIES)}"
        )
    return name


def import_keras() -> Any:
    """Import Keras on TensorFlow, with as many threads as torch has at that moment.

    Raises:
        ImportError: The extra `parity` is not installed; or TensorFlow was imported before Triton,
            or Keras with another backend.
    """
    return _import()[0]


def import_tensorflow() -> Any:
    """Import TensorFlow as `import_keras` does."""
    return _import()[1]


@cache
def _import() -> tuple[Any, Any]:
    missing = [name for name in ("tensorflow", "keras") if not find_spec(name)]
    if missing:
        raise ImportError(
            f"{' and '.join(missing)} cannot be imported: install the extra, "
            'pip install "digitlab[parity]", which needs Python 3.11 to 3.13'
        )
    _check_order()
    if find_spec("triton"):
        # Importing TensorFlow first aborts the process (SIGABRT) without a traceback.
        import triton  # noqa: F401
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"  # read once, at the first import
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # log messages after the import
    with _silent_stderr():
        import keras
        import tensorflow

        for logger in ("tensorflow", "absl"):  # they tell a notebook everything
            logging.getLogger(logger).setLevel(logging.ERROR)
        if keras.backend.backend() != "tensorflow":
            raise ImportError(
                f"Keras was imported with the backend {keras.backend.backend()}: set the "
                "environment variable KERAS_BACKEND to tensorflow before it is imported"
            )
        if not tensorflow.executing_eagerly():
            raise ImportError(
                "TensorFlow's eager execution is off: leave disable_eager_execution out"
            )
        try:
            _set_threads(tensorflow.config.threading, torch.get_num_threads())
            for gpu in tensorflow.config.list_physical_devices("GPU"):
                tensorflow.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            pass  # TensorFlow is initialized already; its settings are fixed
    return keras, tensorflow


def set_threads(number: int) -> None:
    """Let TensorFlow compute in so many CPU threads, in an operation and across operations."""
    threading = import_tensorflow().config.threading
    try:
        _set_threads(threading, number)
    except RuntimeError as error:
        # 0 is TensorFlow's default, as many as there are cores.
        present = threading.get_intra_op_parallelism_threads() or "as many as there are cores"
        if present == number:
            present = f"{number} ({threading.get_inter_op_parallelism_threads()} across operations)"
        raise ValueError(
            f"threads is {number}, but TensorFlow's threads in this process are {present}: it "
            "cannot change them once it has computed, so start another process"
        ) from error


def _set_threads(threading: Any, number: int) -> None:
    threading.set_intra_op_parallelism_threads(number)
    threading.set_inter_op_parallelism_threads(number)


def _check_order() -> None:
    if find_spec("triton") and "tensorflow" in sys.modules and "triton" not in sys.modules:
        raise ImportError(
            "TensorFlow was imported before Triton, which torch needs, and the process would abort "
            "later: restart Python, and import digitlab.parity before Keras and TensorFlow"
        )


def limit_gpu_memory(megabytes: int) -> None:
    """Limit the memory that TensorFlow uses of each GPU, in MB of 2²⁰ bytes, before it uses any."""
    config = import_tensorflow().config
    for gpu in config.list_physical_devices("GPU"):
        try:
            config.experimental.set_memory_growth(gpu, False)  # the two exclude each other
            limit = config.LogicalDeviceConfiguration(memory_limit=megabytes)
            config.set_logical_device_configuration(gpu, [limit])
        except RuntimeError as error:
            raise ValueError(
                f"megabytes is {megabytes}, but TensorFlow has used the GPU already: limit its "
                "memory before the first model is made"
            ) from error


def choose_device(accelerator: str, allow_tf32: bool = False) -> str:
    """Let TensorFlow use the device that a trainer names, before the first model; describe it."""
    config = import_tensorflow().config
    gpus = config.list_physical_devices("GPU")
    if accelerator not in ("auto", "cpu", "gpu", "cuda"):
        raise ValueError(f"trainer.accelerator is {accelerator}: TensorFlow has cpu and gpu")
    if accelerator in ("gpu", "cuda") and not gpus:
        raise ValueError(
            f"trainer.accelerator is {accelerator}: TensorFlow finds no GPU on this machine; leave "
            "the config gpu out, or set --trainer.accelerator auto"
        )
    config.experimental.enable_tensor_float_32_execution(allow_tf32)
    if accelerator == "cpu" and config.get_visible_devices("GPU"):
        try:
            config.set_visible_devices([], "GPU")
        except RuntimeError as error:
            raise ValueError(
                "trainer.accelerator is cpu, but TensorFlow has used a GPU in this process: "
                "start another one"
            ) from error
    return describe_device()


def describe_device() -> str:
    """Name the device that TensorFlow uses: a GPU's model, or its number of threads on the CPU."""
    config = import_tensorflow().config
    for gpu in config.get_visible_devices("GPU"):
        name: str = config.experimental.get_device_details(gpu).get("device_name", "GPU")
        return name
    threads = config.threading.get_intra_op_parallelism_threads() or torch.get_num_threads()
    return f"cpu ({threads} thread{'' if threads == 1 else 's'})"


def to_tensorflow(tensor: Tensor) -> Any:
    """Pass a tensor to TensorFlow without a copy, which would take 2% of a small network's step."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.data_ptr() % 64:
        tensor = tensor.clone()  # TensorFlow's kernels need this alignment
    return import_tensorflow().experimental.dlpack.from_dlpack(to_dlpack(tensor))


@contextmanager
def keras_dtype(policy: Policy) -> Iterator[None]:
    """Set Keras's dtype policy in the `with` block, and restore the former one after it."""
    config = import_keras().config
    before = (config.floatx(), config.dtype_policy())
    try:
        # Both are needed: `floatx` set after its first use changes no layer, and the policy leaves
        # losses and learning rates in `floatx`.
        config.set_floatx("float64" if policy == "float64" else "float32")
        config.set_dtype_policy(policy)
        yield
    finally:
        config.set_floatx(before[0])
        config.set_dtype_policy(before[1])


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Restore Python's random state, from which Keras draws the seeds of initial weights."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hide what TensorFlow's libraries write to file descriptor 2, unless the block raises."""
    with tempfile.TemporaryFile() as kept:
        try:
            with redirected(kept, 2):
                yield
        except BaseException:
            kept.seek(0)
            with suppress(OSError):  # it is closed
                os.write(2, kept.read())
            raise


_check_order()  # now, since the rest of the package imports Lightning, which imports Triton
