"""What a language model computes of what it is asked: batches, scores of continuations, answers."""
