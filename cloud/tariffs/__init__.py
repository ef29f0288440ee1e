"""What charging costs: prices that never change once given, where they hold, what they come to.

Which version holds is settled by the place and the moment of a start: later changes of prices, or
of where they hold, are no business of it.
"""
