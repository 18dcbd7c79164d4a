"""One cell of an experiment's grid, with everything that decides its measurement."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from inferlab.lab.specification import After, Engine, Flags, Program, Scalar

# What has to be the same for two points to share servers.
SERVERS = (
    *("engine", "model", "server", "environment", "workers", "router"),
    *("disaggregated", "kv_store", "neighbour"),
)


@dataclass(frozen=True)
class Point:
    """One cell of the grid: what the reader varies, and the flags that follow from it."""

    engine: Engine
    model: str  # empty where the machine itself is measured
    parameters: dict[str, Scalar]
    server: Flags  # the profile's among them
    environment: dict[str, str]  # the profile's among them
    workers: int
    router: Flags
    lose_worker_after_s: float | None
    neighbour: str | None
    disaggregated: bool
    kv_store: Flags | None
    after: After
    program: Program | None
    options: Flags
    client: Flags
    prompts: Flags
    objective: dict[str, float]  # empty where the workload has none

    @property
    def name(self) -> str:
        """What its files are called."""
        return re.sub(r"[^\w.-]+", "-", "-".join(str(v) for v in self.parameters.values()))

    def key(self, context: dict[str, Any]) -> str:
        """Hash of everything that decides the measurement; `context` holds versions and machine."""
        own = {**context, "models": context["models"].get(self.model)}
        text = json.dumps({"point": asdict(self), "context": own}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def has_the_servers_of(self, other: "Point") -> bool:
        """True if what serves `other` can serve this one."""
        return self.program is None and all(
            getattr(self, name) == getattr(other, name) for name in SERVERS
        )
