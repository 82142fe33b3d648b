package house

// Figures are the measures of a package on which bounds are set.
type Figures struct {
	Files       int
	Code        int // lines of code in all
	Longest     int // lines of the longest file, comments included
	LongestFile string

	Edges    int      // pairs of files of which one uses something of the other
	Knot     []string // the largest strongly connected group of files, by any use
	CallKnot []string // by calls alone

	Shadows  []Shadow
	Pronouns int // what, who, whoever, whatever in comments
	Words    int // of comments

	MainType        string // the type with the most methods
	MainTypeMethods int
	MainTypeFiles   int
}

// EdgesPerFile is how many other files a file uses on average.
func (f Figures) EdgesPerFile() float64 { return float64(f.Edges) / float64(max(f.Files, 1)) }

// PronounsPer100 is the share of pronouns in the words of comments.
func (f Figures) PronounsPer100() float64 {
	return 100 * float64(f.Pronouns) / float64(max(f.Words, 1))
}

// Measure takes the figures of a package.
func (p *Package) Measure() Figures {
	f := Figures{Files: len(p.Files), Shadows: p.Shadows()}
	for _, file := range p.Files {
		f.Code += file.Code
		if file.Lines > f.Longest {
			f.Longest, f.LongestFile = file.Lines, file.Name
		}
	}
	uses := p.Uses()
	edges := Edges(uses, false)
	for _, to := range edges {
		f.Edges += len(to)
	}
	f.Knot = largest(edges)
	f.CallKnot = largest(Edges(uses, true))
	f.Pronouns, f.Words = p.Pronouns()
	f.MainType, f.MainTypeMethods, f.MainTypeFiles = p.MainType()
	return f
}

// largest returns the largest knot, or nil where there is none.
func largest(edges map[string][]string) []string {
	knots := Knots(edges)
	if len(knots) == 0 {
		return nil
	}
	return knots[0]
}
