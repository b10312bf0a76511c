"""A data set whose classes have names that are no words."""

from typing import ClassVar

from tests.tiny import TinyDataModule


class OddNames(TinyDataModule):
    """The tiny data."""

    name = "odd"
    class_names: ClassVar[tuple[str, ...]] = (
        '<script>"0"</script>',
        "& </td>",
        *map(str, range(2, 10)),
    )
