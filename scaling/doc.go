// Package scaling decides how many replicas a function should have, from its
// policy, its load and what was decided before.
//
// It promises: a number within the policy's minimum and maximum, or zero where the
// policy allows that; more at the moment they are needed; fewer only once fewer
// would have done for the whole of the policy's window, so that a burst or noise
// makes no replicas come and go; under a steady load a number that stays.
//
// It is pure: the time is an argument, and what it remembers is handed in and out.
// It does not know where replicas are or whether there is room for them.
package scaling
