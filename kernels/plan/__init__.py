"""A sparsity plan as runtimes read it, checked against a model and placed on its device."""
