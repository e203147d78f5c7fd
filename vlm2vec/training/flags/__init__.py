"""The flags of a run: one file per group (fields, help, policy, refusals), parsing, recipes, the engine file."""
