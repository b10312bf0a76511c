"""Hooks of Keras's `fit`."""

from typing import Any

from digitlab.parity.backend import import_keras


class Hooks:
    """A base for classes with hooks of `keras.callbacks.Callback`, which is not imported for them.

    Keras calls the methods of a subclass that are named as its own: `on_epoch_end`, say.
    """

    def callback(self) -> Any:
        """Make the Keras callback of these hooks."""
        hooks = [name for name in dir(self) if name.startswith("on_")]
        return import_keras().callbacks.LambdaCallback(
            **{name: getattr(self, name) for name in hooks}
        )
