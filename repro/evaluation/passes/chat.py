"""What chat templates are given, the same on every day and for every model."""

from __future__ import annotations

from datetime import datetime
from typing import Any

TODAY = datetime(2024, 7, 26)
"""What a chat template is told that asks for the date; Llama 3.1's own names this day where it cannot ask."""

CHAT_SETTINGS: dict[str, Any] = {"strftime_now": TODAY.strftime, "enable_thinking": False}
"""What a chat template is given: the date, and that Qwen3 shall answer at once, without a thought before."""
