"""The isolators by name."""

from collections.abc import Callable

from autograder.sandbox.isolator import BubblewrapIsolator, Isolator
from autograder.sandbox.kubernetes import KubernetesIsolator

ISOLATORS: dict[str, Callable[[], Isolator]] = {
    "bubblewrap": BubblewrapIsolator,
    "kubernetes": KubernetesIsolator,
}
