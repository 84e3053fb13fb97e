"""The method `wisparse`: searched sparsities of blocks and projections, and searched exponents."""
