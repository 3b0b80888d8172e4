"""What every framework that trains torch modules uses: names, states, gradients. Imports no such framework."""
