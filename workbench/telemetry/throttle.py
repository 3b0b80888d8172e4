"""Why a GPU runs below the clocks that it could have: NVML's bit mask in words. Pure."""

from __future__ import annotations

#: bits of ``gpu_throttle`` (nvml.h, nvmlClocksEventReasons): why clocks are below what they could be
THROTTLE_REASONS = {
    0x1: "idle",
    0x2: "clocks set by an application",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "temperature (software)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
    0x100: "display clocks",
}
#: bits that are no sign of trouble
HARMLESS = 0x1 | 0x2 | 0x10 | 0x100


def throttle_reasons(mask: int) -> list[str]:
    """Names of the reasons in ``mask`` that slow a busy GPU down."""
    return [name for bit, name in THROTTLE_REASONS.items() if mask & bit and not bit & HARMLESS]
