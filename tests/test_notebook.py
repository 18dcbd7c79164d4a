"""`say`, `show` and `predict`: what a chapter's cells print, and what they refuse."""

import json
import re
import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from inferlab import predict, say, show, show_table
from inferlab.notebook import SAID_KEY, Predictions, Said, figure_html, format_said


@pytest.fixture(autouse=True)
def shell():
    """Without a shell IPython prints instead of displaying."""
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@pytest.mark.parametrize(
    ("value", "unit", "printed"),
    [
        (131072, "B", "131,072\u00a0B"),
        (7.3614, "ms", "7.36\u00a0ms"),
        (0.012345, "s", "0.0123\u00a0s"),
        (2039.4, "GB/s", "2,040\u00a0GB/s"),
        (99.96, "%", "100\u00a0%"),
        (3.2, "×", "3.20×"),
        (0.0, "", "0"),
        ("16 of 64", "", "16 of 64"),
    ],
)
def test_numbers_are_printed_sensibly(value, unit, printed):
    assert format_said(Said("x", value, unit)) == printed


def test_a_format_specification_overrides_the_default():
    assert format_said(Said("x", 7.3614, "ms"), ".1f") == "7.4\u00a0ms"


@given(st.floats(min_value=1e-3, max_value=1e14))
def test_a_float_is_printed_within_half_of_its_third_digit(value):
    printed = float(format_said(Said("x", value, "")).replace(",", ""))
    assert abs(printed - value) <= 0.00501 * value


def test_say_hands_its_number_to_the_page():
    with capture_output() as captured:
        say("kv_bytes", np.int64(131072), "B")
    (output,) = captured.outputs
    assert output.metadata[SAID_KEY] == {"name": "kv_bytes", "value": 131072, "unit": "B"}
    assert "131,072\u00a0B" in output.data["text/html"]


@pytest.mark.parametrize("value", [None, True, [1, 2], np.array([1, 2])])
def test_say_refuses_what_is_no_single_number(value):
    with pytest.raises(ValueError, match="expected one integer, float or string"):
        say("x", value)


def test_say_refuses_a_name_that_no_role_can_hold():
    with pytest.raises(ValueError, match="no identifier"):
        say("two words", 1)


def line_figure(points=3):
    figure = go.Figure(go.Scatter(x=list(range(points)), y=[i / 7 for i in range(points)]))
    return figure.update_layout(xaxis_title="Time (s)", yaxis_title="Tokens")


def test_show_puts_data_on_a_page_and_the_figure_itself_in_a_notebook(monkeypatch):
    monkeypatch.setenv("INFERLAB_CONTEXT", "book")
    with capture_output() as captured:
        show(line_figure(), "It grows.", badge="recorded, CPU", alt="A rising line")
    (output,) = captured.outputs
    html = output.data["text/html"]
    payload = json.loads(re.search(r"<script[^>]*>(.*?)</script>", html)[1])
    assert payload["figure"]["data"][0]["y"] == [0, 0.1429, 0.2857]
    assert 'aria-label="A rising line"' in html
    assert "recorded, CPU" in html
    assert "cdn" not in html

    monkeypatch.delenv("INFERLAB_CONTEXT")
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    with capture_output() as captured:
        show(line_figure(), "It grows.")
    assert "application/vnd.plotly.v1+json" in captured.outputs[0].data


def test_alternative_text_defaults_to_the_caption():
    assert 'aria-label="It &quot;grows&quot;"' in figure_html({}, 'It "grows"', None, 'It "grows"')


def test_show_refuses_an_axis_without_title_and_a_figure_without_caption():
    figure = go.Figure(go.Scatter(x=[1], y=[1])).update_layout(xaxis_title="Time (s)")
    with pytest.raises(ValueError, match="yaxis of the figure has no title"):
        show(figure, "It grows.")
    with pytest.raises(ValueError, match="needs a caption"):
        show(line_figure(), " ")


def test_show_refuses_a_figure_above_300_kib(monkeypatch):
    monkeypatch.setenv("INFERLAB_CONTEXT", "book")
    with pytest.raises(ValueError, match="limit is 300 KiB"):
        show(line_figure(points=40_000), "Too much.")


def test_data_cannot_end_the_script_element():
    html = figure_html({"name": "</script><b>"}, "c", None, "c")
    assert html.count("</script>") == 1


def test_prediction_and_result_are_shown_together():
    own = Predictions()
    with capture_output() as captured:
        own("concurrency", requests=32)
        own.compare("concurrency", requests=64)
    result = captured.outputs[1].data["text/html"]
    assert "32" in result
    assert "64" in result


def test_a_guess_left_open_is_shown_as_such():
    with capture_output() as captured:
        predict("open", ms=...)
        predict.compare("open", ms=3.5)
    assert "not predicted yet" in captured.outputs[1].data["text/html"]


def test_a_result_needs_a_prediction_about_the_same_quantity():
    own = Predictions()
    with pytest.raises(ValueError, match="Nothing was predicted"):
        own.compare("ttft", ms=1)
    with capture_output():
        own("ttft", ms=2)
    with pytest.raises(ValueError, match="is about ms, the result about s"):
        own.compare("ttft", s=1)
    with pytest.raises(ValueError, match="is no number"):
        own("ttft", ms="fast")
    with pytest.raises(ValueError, match="predicts nothing"):
        own("ttft")


def test_importing_inferlab_loads_the_standard_library_only():
    program = (
        "import sys; before = set(sys.modules); import inferlab; "
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'inferlab'}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_a_table_is_html_and_holds_any_text():
    with capture_output() as captured:
        show_table(["token", "probability"], [["<|end|>", 0.5], ("a & b", 0.25)])
    (shown,) = captured.outputs
    assert shown.data["text/html"] == (
        "<table><thead><tr><th>token</th><th>probability</th></tr></thead><tbody>"
        "<tr><td>&lt;|end|&gt;</td><td>0.5</td></tr><tr><td>a &amp; b</td><td>0.25</td></tr>"
        "</tbody></table>"
    )
    with pytest.raises(ValueError, match="1 cells and the head 2"):
        show_table(["token", "probability"], [["alone"]])
