"""The core all methods share: scores, mask rules, allocators, the plan and its execution; and WiSparse."""
