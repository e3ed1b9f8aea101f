"""Samplers and schedules, certified on laws whose answer is known."""
