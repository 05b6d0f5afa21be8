"""FrozenLSTM and its streams beside what else serves an LSTM on a CPU."""
