"""Recurrences of fixed state that stand where attention stood: retention, delta networks, xLSTM, RWKV."""
