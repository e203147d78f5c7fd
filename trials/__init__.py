"""Programs that take minutes and prove a claim of this project; tests run samples of them."""
