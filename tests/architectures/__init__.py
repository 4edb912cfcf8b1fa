"""Models that nobody wrote the engine for, each written as its authors write it."""

from tests.architectures.attention import *  # noqa: F403
from tests.architectures.blocks import *  # noqa: F403
from tests.architectures.convnets import *  # noqa: F403
from tests.architectures.resnets import *  # noqa: F403
