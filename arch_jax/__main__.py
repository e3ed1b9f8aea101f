"""`python -m arch_jax` is the command `arch-jax`."""

from arch_jax.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
