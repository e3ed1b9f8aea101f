"""Checkpoints of mamba_ssm, the authors' own package for Mamba and Mamba-2. A type is found by lying here."""
