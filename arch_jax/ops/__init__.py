"""Pure functions on arrays: no parameters, no Flax. Each fast form stands beside its `*_reference`."""
