"""Checks that the models of a profile are here, or can be fetched."""

import json
import shutil
from pathlib import Path

import httpx
import huggingface_hub
from huggingface_hub import constants

from inferlab import models
from inferlab.lab.checkpoints import downloaded, is_ours
from inferlab.lab.finding import Finding
from inferlab.lab.paths import without_root
from inferlab.lab.specification import load_models
from inferlab.models.quantized import CACHE

ANSWER_WITHIN_S = 5.0


def model_findings(names: list[str]) -> list[Finding]:
    """Each model: the checkpoint, or the download, or whether and whither it can be downloaded."""
    found = [model_finding(name) for name in names]
    to_fetch = [name for name, finding in zip(names, found) if not finding.ok]
    facts = load_models()
    sizes = [facts[name].download_bytes or 0 for name in to_fetch if name in facts]
    return [*found, disk_finding(sum(sizes))] if any(sizes) else found


def model_finding(name: str) -> Finding:
    """One model."""
    if name in models.names():
        return checkpoint_finding(name)
    if is_ours(name):
        return Finding(name, True, f"made when it is needed, in {without_root(str(CACHE))}")
    snapshot = downloaded(name)
    fetch = f'`hf download {name} --exclude "original/*"`'
    if snapshot is None:
        return access_finding(name, fetch)
    missing = missing_weights(snapshot)
    if missing:
        detail = f"the download lacks {', '.join(missing)}: finish it with {fetch}"
        return Finding(name, False, detail)
    return Finding(name, True, "downloaded")


def checkpoint_finding(name: str) -> Finding:
    """The committed checkpoint, unchanged."""
    weights = models.path(name) / "model.safetensors"
    if not weights.exists():
        detail = f"there is no {without_root(str(weights))}: restore it with git"
        return Finding(name, False, detail)
    if models.weights_hash(name) != models.card(name)["weights_sha256"]:
        detail = f"{without_root(str(weights))} is not what its card describes: restore it with git"
        return Finding(name, False, detail)
    return Finding(name, True, "the weights are those that its card describes")


def missing_weights(snapshot: Path) -> list[str]:
    """Files of weights that the model's index names, or its only one, and that are not there."""
    index = snapshot / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return [name for name in names if not (snapshot / name).exists()]


def access_finding(model: str, fetch: str) -> Finding:
    """Whether Hugging Face would hand out the model, asked with one request."""
    page = f"{constants.ENDPOINT}/{model}"
    token = huggingface_hub.get_token()
    try:
        answer = httpx.head(
            f"{page}/resolve/main/config.json",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=ANSWER_WITHIN_S,
            follow_redirects=True,
        )
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        detail = (
            f"not downloaded, and {constants.ENDPOINT} cannot be reached ({why}): run {fetch} "
            f"where there is a network, and copy the folder {constants.HF_HUB_CACHE} here"
        )
        return Finding(model, False, detail)
    advice = {
        200: f"you may fetch it: {fetch}",
        401: f"log in with `hf auth login`, after {page} has granted you access",
        403: f"ask for access at {page}, with the account whose token is used here",
        404: "there is no such model: correct the profile",
    }.get(answer.status_code, f"{page} answered {answer.status_code}: try again later")
    return Finding(model, False, f"not downloaded; {advice}")


def disk_finding(needed: int) -> Finding:
    """Room for `needed` bytes of weights, where Hugging Face puts them."""
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1e9:.1f} GB free in {constants.HF_HUB_CACHE}"
    if free < needed:
        detail += (
            f", and what is not downloaded takes {needed / 1e9:.1f}: free some, or name a folder "
            f"on a larger disk with HF_HOME"
        )
    return Finding("disk for the models", free >= needed, detail)
