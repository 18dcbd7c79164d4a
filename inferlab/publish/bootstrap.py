"""The first code cell of a student notebook: it sees to the bundle and to what that needs.

In JupyterLab the bundle lies beside the notebook and the cell only switches the fallback on. In
Colab the notebook arrives alone, so the cell fetches the rest from where the book is published.
"""

from string import Template

BOOTSTRAP = Template("""\
# setup: course
# Run this cell first. Where the notebook was opened without its bundle, as in Colab, it fetches it.
import importlib.metadata, io, json, os, pathlib, subprocess, sys, urllib.request, zipfile

def prepare(week="$week", course="$url/bundles"):
    course = os.environ.get("INFERLAB_BUNDLE_URL", course)
    here = pathlib.Path.cwd()
    try:
        if not (here / "bundle.json").exists():
            with urllib.request.urlopen(f"{course}/{week}.zip", timeout=60) as answer:
                bundle = zipfile.ZipFile(io.BytesIO(answer.read()))
            for name in sorted(bundle.namelist(), key="bundle.json".__eq__):  # last: all is there
                if not (here / name).exists():  # never write over your own work
                    bundle.extract(name, here)
        names = "numpy safetensors tokenizers plotly ipywidgets torch".split()
        needed = {name: name for name in names} | {
            "triton": "triton; sys_platform == 'linux'",  # there is none for other systems
            "inferlab_checkpoints": f"{course}/$wheel",
        }
        found = importlib.metadata.distributions()
        installed = {str(one.name).lower().replace("-", "_") for one in found}
        missing = [where for name, where in needed.items() if name not in installed]
        if missing:
            pip = [sys.executable, "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, *missing], check=True)
    except (OSError, ValueError, zipfile.BadZipFile, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            f"The bundle of {week} could not be prepared from {course} ({error}). Check the "
            "address and your connection, or upload the unpacked bundle beside this notebook; "
            "then run this cell again."
        ) from None
    found = json.loads((here / "bundle.json").read_text())["week"]
    loaded = getattr(sys.modules.get("inferlab"), "__file__", None)
    if found != week or (loaded and not pathlib.Path(loaded).is_relative_to(here)):
        raise RuntimeError(
            f"This notebook is of {week}, the bundle in {here} of {found}, and inferlab is loaded "
            f"from {loaded}: give each week its own folder, restart the kernel, run this cell."
        )
    sys.path.insert(0, str(here))
    importlib.invalidate_caches()
    from inferlab import unfinished

    unfinished.enable()


prepare()
""")


def bootstrap_cell(week: str, site_url: str, wheel: str) -> str:
    """Source of the cell for `week`; `wheel` is the file name of the checkpoints' distribution."""
    return BOOTSTRAP.substitute(week=week, url=site_url, wheel=wheel)
