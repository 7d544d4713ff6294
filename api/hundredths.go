package api

// UpToHundredths is r with each amount that is reserved rounded up to a hundredth
// of what there is: where one sandbox alone has some, the exact sum is what its
// sealed manifest asked for, and listings are for everybody.
func (r Resources) UpToHundredths(of Resources) Resources {
	return r.inHundredths(of, func(v, step int64) int64 { return (v + step - 1) / step * step })
}

// DownToHundredths is UpToHundredths for what is free. All of it stays all of it.
func (r Resources) DownToHundredths(of Resources) Resources {
	return r.inHundredths(of, func(v, step int64) int64 { return v / step * step })
}

func (r Resources) inHundredths(of Resources, round func(v, step int64) int64) Resources {
	for _, x := range []struct {
		v    *int64
		most int64
	}{{&r.CPU, of.CPU}, {&r.Memory, of.Memory}, {&r.PIDs, of.PIDs}, {&r.Scratch, of.Scratch},
		{&r.Ingress, of.Ingress}, {&r.Egress, of.Egress}, {&r.Ports, of.Ports}, {&r.Cores, of.Cores}} {
		if step := x.most / 100; step > 1 && *x.v < x.most {
			*x.v = round(*x.v, step)
		}
	}
	return r
}
