"""What the papers print, held against what was measured."""
