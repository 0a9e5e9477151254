"""A CZI's display settings: how its own software shows each channel. Pure.

Seen in real files: DisplaySetting/Channels/Channel with Low and High as parts of the pixel type's range (10000 of 65535
is 0.1526), Gamma, IsSelected (false: switched off), and Color as #RRGGBB or #AARRGGBB. An Id is "Channel:1", or a long
number that Information/Image/Dimensions/Channels repeats in the order of the channels.
"""

from __future__ import annotations

import math
import re

from lxml import etree

from mimic.structure.facts import CziDisplay

CHANNELS_MAX = 1000
GAMMA = (0.02, 50.0)
"""Useful ones lie between 0.2 and 5; what is outside of this is a writer's slip."""


def display(root: etree._Element) -> tuple[CziDisplay, ...]:
    """Settings by channel index, of as many channels as have any; values that make no sense are left out."""
    order = [each.get("Id", "") for each in root.iterfind(".//Information/Image/Dimensions/Channels/Channel")]
    found: dict[int, CziDisplay] = {}
    for position, element in enumerate(root.iterfind(".//DisplaySetting/Channels/Channel")):
        index = _index(element.get("Id", ""), order, position)
        if index < CHANNELS_MAX:
            found.setdefault(index, _channel(index, element))
    return tuple(found[index] for index in sorted(found))


def _index(name: str, order: list[str], position: int) -> int:
    if name and order.count(name) == 1:
        return order.index(name)
    number = re.fullmatch(r"Channel:([0-9]{1,3})", name)
    return int(number[1]) if number else position


def _channel(index: int, element: etree._Element) -> CziDisplay:
    low, high = _number(element, "Low"), _number(element, "High")
    if low is None and high is not None:
        low = 0.0  # ZEN writes only what differs from the whole range
    elif high is None and low is not None:
        high = 1.0
    if low is None or high is None or not 0 <= low < high <= 1:
        low = high = None
    gamma = _number(element, "Gamma") or 1.0
    gamma = gamma if GAMMA[0] <= gamma <= GAMMA[1] else 1.0
    hidden = (element.findtext("IsSelected") or "").strip().lower() == "false"
    return CziDisplay(index, low, high, gamma, _colour(element), hidden)


def _number(element: etree._Element, name: str) -> float | None:
    try:
        value = float(element.findtext(name) or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _colour(element: etree._Element) -> tuple[int, int, int] | None:
    found = re.fullmatch(r"#(?:[0-9A-Fa-f]{2})?([0-9A-Fa-f]{6})", (element.findtext("Color") or "").strip())
    if found is None or found[1] == "000000":
        return None
    red, green, blue = bytes.fromhex(found[1])
    return red, green, blue
