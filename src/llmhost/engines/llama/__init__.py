"""GGUF models by llama.cpp, under our scheduler."""
