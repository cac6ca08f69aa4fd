"""Text-aware recommendations: a BERT tower and a CF tower, fused by a ranker."""
