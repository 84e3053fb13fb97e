"""Tables of questions: what one factor changes."""
