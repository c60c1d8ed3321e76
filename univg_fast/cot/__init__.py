"""Reasoning traces for stage 1, made from boxes, labels and image numbers, or asked of a teacher and filtered."""
