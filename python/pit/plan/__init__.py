"""A run before anything is spent on it: counted on paper (`pit run --dry-run`), or compiled for a slice (`pit plan`).

`dry_run` counts steps, tokens and memory (`sizes`, `memory`). The others compile the programs of training for TPUs that
are not attached (`target`, `programs`, `compiling`), read what the compiler made of them (`account`, `flops`,
`traffic`), and say whether each stage fits (`verdict`, `tables`).
"""
