//! Reads the Prometheus text format, strictly enough to notice a broken line.

use std::collections::BTreeMap;

/// One line of the exposition.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// One scrape.
#[derive(Debug, Default)]
pub struct Metrics {
    pub samples: Vec<Sample>,
    /// Metric family → its `# TYPE`.
    pub types: BTreeMap<String, String>,
}

impl Metrics {
    /// Parses a scrape; the error names the line.
    pub fn parse(text: &str) -> Result<Metrics, String> {
        let mut metrics = Metrics::default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let (name, kind) =
                    declared.split_once(' ').ok_or_else(|| format!("bad TYPE line: {line}"))?;
                if metrics.types.insert(name.to_owned(), kind.trim().to_owned()).is_some() {
                    return Err(format!("TYPE of {name} declared twice"));
                }
            } else if !line.starts_with('#') {
                let sample = parse_sample(line).ok_or_else(|| format!("bad sample line: {line}"))?;
                metrics.samples.push(sample);
            }
        }
        Ok(metrics)
    }

    /// The sum of all samples of that name that carry at least these labels; 0 where there are none, as with
    /// a counter that has not moved yet.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// The samples of that name that carry at least these labels.
    pub fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|has| has == value))
        })
    }
}

fn parse_sample(line: &str) -> Option<Sample> {
    let name_end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    let value = match rest.strip_prefix('{') {
        None => rest,
        Some(mut rest) => loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                break after;
            }
            let (key, after) = rest.split_once("=\"")?;
            let (text, after) = parse_quoted(after)?;
            labels.insert(key.to_owned(), text);
            rest = after;
        },
    };
    let name_is_good = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || "_:".contains(letter));
    let value = match value.trim() {
        "+Inf" => f64::INFINITY,
        number => number.parse().ok()?,
    };
    name_is_good.then(|| Sample { name: name.to_owned(), labels, value })
}

/// A label's value up to its closing quote, and what follows the quote.
fn parse_quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match letters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}
