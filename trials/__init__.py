"""Long-running programs that verify a claim of this project; the tests run samples of them."""
