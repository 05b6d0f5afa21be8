"""FusedLSTM against ``torch.nn.LSTM``, timed side by side. NOTES.md says what is run and how."""
