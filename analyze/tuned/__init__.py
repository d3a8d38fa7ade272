"""What training tuned lenses needs: recipes, folds of prompts, shuffling."""
