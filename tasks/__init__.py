"""Model + loss + data + partition: each task offers gradients. The only place that imports torch, and late."""
