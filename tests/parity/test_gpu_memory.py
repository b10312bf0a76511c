from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from digitlab.parity import backend
from digitlab.parity.backend import import_tensorflow, limit_gpu_memory

pytestmark = pytest.mark.skipif(not find_spec("tensorflow"), reason="needs the extra `parity`")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two GPUs, by a stand-in for TensorFlow's `config` that notes what it is told, in order."""
    told: list[tuple[Any, ...]] = []
    config: Any = SimpleNamespace(
        told=told,
        names=["first", "second"],
        list_physical_devices=lambda kind: config.names if kind == "GPU" else ["CPU:0"],
        threading=SimpleNamespace(set_intra_op_parallelism_threads=lambda count: None),
        experimental=SimpleNamespace(
            set_memory_growth=lambda gpu, grows: told.append((gpu, "grows", grows))
        ),
        LogicalDeviceConfiguration=lambda *, memory_limit: memory_limit,
        set_logical_device_configuration=lambda gpu, limits: told.append((gpu, *limits)),
    )
    monkeypatch.setattr(import_tensorflow(), "config", config)
    return config


def test_the_door_lets_the_memory_of_every_gpu_grow(gpus: Any) -> None:
    backend._import.__wrapped__()  # as in a new process
    assert gpus.told == [("first", "grows", True), ("second", "grows", True)]


def test_every_gpu_is_limited_once_its_memory_no_longer_grows(gpus: Any) -> None:
    limit_gpu_memory(1024)
    assert gpus.told == [
        *[("first", "grows", False), ("first", 1024)],
        *[("second", "grows", False), ("second", 1024)],
    ]


@pytest.mark.parametrize("megabytes", [0, -1])
def test_a_limit_below_one_megabyte_is_refused(gpus: Any, megabytes: int) -> None:
    with pytest.raises(ValueError, match=f"^megabytes is {megabytes}: it must be at least 1$"):
        limit_gpu_memory(megabytes)
    assert gpus.told == []


def test_a_limit_that_comes_too_late_is_refused(gpus: Any) -> None:
    def refuse(*args: object) -> None:
        raise RuntimeError("the devices are initialized")

    gpus.set_logical_device_configuration = refuse
    with pytest.raises(ValueError, match=r"megabytes is 5, .* before the first model is made"):
        limit_gpu_memory(5)


def test_without_a_gpu_there_is_nothing_to_limit(gpus: Any) -> None:
    gpus.names.clear()
    limit_gpu_memory(1)
    assert gpus.told == []
