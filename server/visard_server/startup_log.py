"""Reads in Triton's log why it did not start, or ended."""

from __future__ import annotations

import re
from collections.abc import Iterable

PORT_TAKEN = "already in use"
NO_GPU = "no GPUs are available"
_FAILED_TO_LOAD = re.compile(r"failed to load '([^']+)' version \d+: (.*)\"$", re.MULTILINE)
_POLL_FAILED = re.compile(r"Poll failed for model directory '([^']+)': (.*)\"$", re.MULTILINE)
_BAD_CONFIG = re.compile(r"Error parsing text-format \S+ (.*)$", re.MULTILINE)
_UNREAD_CONFIG = "failed to read text proto"
_UNFIT_ENSEMBLE = re.compile(r"\"Invalid argument: ensemble (\S+) (contains .*)\"$", re.MULTILINE)
_TRACEBACK = r"\n\nAt:"  # Triton writes a model's traceback, with its line breaks escaped, behind the message


def failed_models(log: str) -> dict[str, str]:
    """Find in a server's log which models did not load and why; ensembles only where no part of them is named."""
    found = [*_FAILED_TO_LOAD.findall(log), *_POLL_FAILED.findall(log)] or _UNFIT_ENSEMBLE.findall(log)
    details = iter(_BAD_CONFIG.findall(log))
    reasons = {}
    for model, reason in found:
        reason = reason.split(_TRACEBACK)[0]
        reasons[model] = re.sub(r"^(Internal|Invalid argument|Not found|Unsupported): (\w+Exception: )?", "", reason)
        if _UNREAD_CONFIG in reason:
            reasons[model] += f" ({next(details, 'see the log')})"
    return reasons


def last_words(tail: Iterable[str]) -> str:
    """Quote the last error of a log, else its end."""
    lines = [line.strip() for line in tail if line.strip()] or ["it wrote no log"]
    errors = [line for line in lines if re.match(r"E\d{4} |error:", line)]
    return (errors or lines)[-1]
