import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from digitlab.parity import backend
from digitlab.parity.backend import (
    choose_device,
    describe_device,
    import_keras,
    import_tensorflow,
    keras_dtype,
    limit_gpu_memory,
    set_threads,
)

Process = subprocess.CompletedProcess[str]

# The state in which a new process finds it; `_import` itself remembers that it went well.
go_through_the_door: Callable[[], tuple[Any, Any]] = backend._import.__wrapped__


def run_python(program: str, **environment: str) -> Process:
    """Run a program in a new process, in which TensorFlow is as noisy as it likes."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL", "CUDA_VISIBLE_DEVICES", "TF_ENABLE_ONEDNN_OPTS"}
    inherited = {name: value for name, value in os.environ.items() if name not in quiet}
    command, env = [sys.executable, "-c", program], {**inherited, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env)


PROGRAM = """
import importlib, json, logging, pkgutil, sys
sys.ps1 = ">>> "  # as in a notebook, where TensorFlow's logger writes more
import torch
torch.set_num_threads(2)
import digitlab.parity
modules = [module.name for module in pkgutil.iter_modules(digitlab.parity.__path__)]
for name in modules:
    importlib.import_module(f"digitlab.parity.{name}")
from digitlab.parity.backend import import_keras, import_tensorflow, set_threads
before = [name for name in ("tensorflow", "keras") if name in sys.modules]
keras, tensorflow = import_keras(), import_tensorflow()
order = [name for name in sys.modules if name in ("tensorflow", "triton")]
threading = tensorflow.config.threading
threads = [threading.get_intra_op_parallelism_threads()]
set_threads(3)
threads += [threading.get_intra_op_parallelism_threads(),
            threading.get_inter_op_parallelism_threads()]
layer = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
shape = layer(keras.ops.ones((2, 4))).shape
print(json.dumps({"modules": modules, "before": before, "order": order, "threads": threads,
                  "level": logging.getLogger("tensorflow").level,
                  "shape": tuple(shape), "backend": keras.backend.backend()}))
"""


@pytest.mark.slow
def test_tensorflow_is_imported_late_after_triton_in_silence_and_with_torchs_threads() -> None:
    """In a new process of a user of another backend, which imports Keras here and computes."""
    process = run_python(PROGRAM, KERAS_BACKEND="torch")
    assert process.stderr == ""
    shown = json.loads(process.stdout)
    assert {"backend", "twins", "weights", "keras_module"} <= set(shown.pop("modules"))
    assert shown == {
        "before": [],
        "order": (["triton"] if find_spec("triton") else []) + ["tensorflow"],
        "level": logging.ERROR,
        "shape": [2, 3],
        "backend": "tensorflow",
        "threads": [2, 3, 3],
    }


def test_threads_cannot_change_once_tensorflow_has_computed() -> None:
    import_keras().ops.ones(1)
    set_threads(1)  # as the tests' own setting is
    message = r"^threads is 2, but TensorFlow's threads in this process are 1: .* another process$"
    with pytest.raises(ValueError, match=message):
        set_threads(2)
    assert describe_device() == "cpu (1 thread)"


def installed(*names: str) -> Callable[[str], object]:
    return lambda name: object() if name in names else None


@pytest.mark.parametrize(
    ("present", "missing"), [((), "tensorflow and keras"), (("keras",), "tensorflow")]
)
def test_without_the_extra_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...], missing: str
) -> None:
    monkeypatch.setattr(backend, "find_spec", installed(*present))
    with pytest.raises(ImportError) as caught:
        go_through_the_door()
    assert str(caught.value) == (
        f'{missing} cannot be imported: install the extra, pip install "digitlab[parity]", '
        "which needs Python 3.11 to 3.13"
    )


def test_tensorflow_imported_before_triton_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "find_spec", installed("tensorflow", "keras", "triton"))
    monkeypatch.setitem(sys.modules, "tensorflow", ModuleType("tensorflow"))
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    with pytest.raises(ImportError, match=r"restart Python, and import digitlab\.parity before"):
        go_through_the_door()
    assert "triton" not in sys.modules, "it was imported in the order that aborts"


@pytest.mark.slow
def test_the_package_is_refused_before_it_imports_triton_in_the_order_that_aborts() -> None:
    program = """
import sys, types
sys.modules["tensorflow"] = types.ModuleType("tensorflow")
try:
    import digitlab.parity
except ImportError as error:
    print("triton" in sys.modules, error)
"""
    shown = run_python(program).stdout
    assert not find_spec("triton") or shown.startswith("False TensorFlow was imported before")


@pytest.mark.slow
def test_tensorflow_may_come_first_where_there_is_no_triton(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modules = (import_keras(), import_tensorflow())
    monkeypatch.setattr(backend, "find_spec", installed("tensorflow", "keras"))
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert go_through_the_door() == modules


def test_keras_imported_with_another_backend_is_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keras = SimpleNamespace(
        __spec__=import_keras().__spec__, backend=SimpleNamespace(backend=lambda: "jax")
    )
    monkeypatch.setitem(sys.modules, "keras", keras)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ImportError, match=r"backend jax: set .* KERAS_BACKEND to tensorflow"):
        go_through_the_door()
    assert os.environ["KERAS_BACKEND"] == "jax", "it is too late to set it"


def test_without_eager_execution_the_error_names_what_to_leave_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(import_tensorflow(), "executing_eagerly", lambda: False)
    with pytest.raises(ImportError, match="leave disable_eager_execution out"):
        go_through_the_door()


def test_stderr_is_kept_back_but_for_the_reason_of_an_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with backend._silent_stderr():
        os.write(2, b"noise\n")
    os.write(2, b"between\n")
    with pytest.raises(KeyboardInterrupt), backend._silent_stderr():  # noqa: PT012
        os.write(2, b"the reason\n")
        raise KeyboardInterrupt
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "between\nthe reason\nlater\n"


def dtype_state() -> tuple[str, str]:
    config = import_keras().config
    return config.floatx(), config.dtype_policy().name


@pytest.mark.parametrize(
    ("policy", "variable", "output"),
    [
        ("float32", "float32", "float32"),
        ("float64", "float64", "float64"),
        ("mixed_bfloat16", "float32", "bfloat16"),
        ("mixed_float16", "float32", "float16"),
    ],
)
def test_layers_losses_and_optimizers_take_the_policys_dtype_which_is_restored(
    policy: backend.Policy, variable: str, output: str
) -> None:
    keras = import_keras()
    with keras_dtype("mixed_bfloat16"):
        before = dtype_state()
        with pytest.raises(ZeroDivisionError), keras_dtype(policy):  # noqa: PT012
            layer = keras.layers.Dense(2)
            loss, optimizer = keras.losses.MeanSquaredError(), keras.optimizers.SGD()
            given = layer(keras.ops.ones((1, 3), dtype=variable))
            raise ZeroDivisionError
        with pytest.raises(ValueError, match="float63"), keras_dtype("float63"):  # type: ignore[arg-type]
            pass
        assert dtype_state() == before == ("float32", "mixed_bfloat16")
    assert (layer.kernel.dtype, given.dtype.name) == (variable, output)
    assert (loss.dtype, optimizer.learning_rate.dtype) == (variable, variable)
    assert dtype_state() == ("float32", "float32")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two GPUs, by a stand-in for TensorFlow's `config` that notes its calls, in order."""
    calls: list[tuple[Any, ...]] = []

    def devices(kind: str) -> list[str]:
        return config.names if kind == "GPU" else ["CPU:0"]

    config: Any = SimpleNamespace(
        calls=calls,
        names=["first", "second"],
        list_physical_devices=devices,
        threading=SimpleNamespace(
            set_intra_op_parallelism_threads=lambda count: None,
            set_inter_op_parallelism_threads=lambda count: None,
            get_intra_op_parallelism_threads=lambda: 1,
        ),
        experimental=SimpleNamespace(
            set_memory_growth=lambda gpu, grows: calls.append((gpu, "grows", grows)),
            enable_tensor_float_32_execution=lambda is_on: calls.append(("TF32", is_on)),
            get_device_details=lambda gpu: {"device_name": f"the {gpu} GPU"},
        ),
        get_visible_devices=devices,
        set_visible_devices=lambda gpus, kind: config.names.clear(),
        LogicalDeviceConfiguration=lambda *, memory_limit: memory_limit,
        set_logical_device_configuration=lambda gpu, limits: calls.append((gpu, *limits)),
    )
    monkeypatch.setattr(import_tensorflow(), "config", config)
    return config


def test_the_import_lets_the_memory_of_every_gpu_grow(gpus: Any) -> None:
    go_through_the_door()
    assert gpus.calls == [("first", "grows", True), ("second", "grows", True)]


@pytest.mark.parametrize("count", [2, 0])
def test_every_gpu_is_limited_once_its_memory_no_longer_grows(gpus: Any, count: int) -> None:
    del gpus.names[count:]
    limit_gpu_memory(1024)
    expected = [((name, "grows", False), (name, 1024)) for name in gpus.names]
    assert gpus.calls == [call for calls in expected for call in calls]


def test_a_limit_that_comes_too_late_is_refused(gpus: Any) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("the devices are initialized")

    gpus.set_logical_device_configuration = refuse
    with pytest.raises(ValueError, match=r"megabytes is 5, .* before the first model is made"):
        limit_gpu_memory(5)


@pytest.mark.parametrize(
    ("accelerator", "device"),
    [("gpu", "the first GPU"), ("auto", "the first GPU"), ("cpu", "cpu (1 thread)")],
)
def test_tensorflow_computes_where_the_trainer_s_setting_says(
    gpus: Any, accelerator: str, device: str
) -> None:
    assert choose_device(accelerator) == device
    assert choose_device(accelerator, allow_tf32=True) == device
    assert gpus.calls == [("TF32", False), ("TF32", True)]


def test_a_gpu_that_tensorflow_has_used_cannot_be_hidden(gpus: Any) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("Visible devices cannot be modified after being initialized")

    gpus.set_visible_devices = refuse
    with pytest.raises(ValueError, match="is cpu, but TensorFlow has used a GPU"):
        choose_device("cpu")
