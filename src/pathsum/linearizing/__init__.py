"""The parts of `pathsum.linearize`: which units have slopes, the prior, the budget, the books, the result."""
