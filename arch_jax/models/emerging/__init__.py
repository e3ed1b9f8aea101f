"""Recurrences of fixed state in place of attention: retention, delta networks, xLSTM, RWKV."""
