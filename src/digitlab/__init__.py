"""The classic networks on MNIST and Fashion-MNIST, as a laboratory.

Train from the command line (`digitlab fit --config …`) or import the parts::

    from digitlab.data import MNISTDataModule
    from digitlab.models import LeNet5

This module imports nothing heavy, so that `digitlab --help` answers at once.
"""

__version__ = "0.1.0"
