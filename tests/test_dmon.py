"""The reader of `nvidia-smi dmon` on lines in its documented layout; none was recorded here."""

import pytest

from inferlab.analysis.dmon import Reading, read_dmon

PLAIN = """\
# gpu    pwr  gtemp  mtemp     sm    mem    enc    dec   mclk   pclk
# Idx      W      C      C      %      %      %      %    MHz    MHz
    0     68     41     50      0      0      0      0   1593   1410
    1    311     62     71     97     64      -      -   1593   1380
# gpu    pwr  gtemp  mtemp     sm    mem    enc    dec   mclk   pclk
# Idx      W      C      C      %      %      %      %    MHz    MHz
    0     70     41     50      3      1      0      0   1593   1410
"""
WITH_TIME = """\
#Date       Time        gpu     sm    mem     fb
#YYYYMMDD   HH:MM:SS    Idx      %      %     MB
 20261122   14:45:48      0     97     64  74321

 20261122   14:45:49      0      -      -  74321
"""


def test_each_line_is_a_reading_also_below_a_repeated_header() -> None:
    readings = read_dmon(PLAIN)
    assert [reading.gpu for reading in readings] == [0, 1, 0]
    assert readings[1].values["sm"] == 97
    assert readings[1].values["enc"] is None, "a dash is no value, and not 0"
    assert readings[2].values["pwr"] == 70


def test_date_and_time_are_kept() -> None:
    first, second = read_dmon(WITH_TIME)
    assert first == Reading(0, "20261122 14:45:48", {"sm": 97, "mem": 64, "fb": 74321})
    assert second.values == {"sm": None, "mem": None, "fb": 74321}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("    0     68\n", "Line 1 has 2 columns and its header names 0"),
        (PLAIN + "    0     68     41\n", "Line 8 has 3 columns"),
        (PLAIN.replace("311", "N/A"), "Line 4 is no reading"),
    ],
)
def test_what_is_no_reading_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_dmon(text)


def test_nothing_is_no_readings() -> None:
    assert read_dmon("") == []
