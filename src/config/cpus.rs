//! Which CPU each shard runs on.

use super::{Config, ConfigError, CpuList, MAX_SHARDS};

impl Config {
    /// The CPU of each shard, in the order of the shards' numbers. To be called on a thread that is not
    /// pinned: what it may run on is what the shards may.
    ///
    /// # Errors
    /// [`ConfigError`] when `--cores` or `--cpus` ask for what is not there.
    pub fn shard_cpus(&self) -> Result<Vec<usize>, ConfigError> {
        let allowed = core_affinity::get_core_ids().unwrap_or_default();
        self.shard_cpus_of(&allowed.into_iter().map(|core| core.id).collect::<Vec<_>>())
    }

    fn shard_cpus_of(&self, allowed: &[usize]) -> Result<Vec<usize>, ConfigError> {
        if allowed.is_empty() {
            let reason = "the system does not say which CPUs this process may run on";
            return Err(ConfigError::new("cores", self.cores.unwrap_or_default(), reason));
        }
        match &self.cpus {
            Some(list) => self.exact_cpus(list, allowed),
            None => self.counted_cpus(self.cores.unwrap_or(allowed.len().min(MAX_SHARDS)), allowed),
        }
    }

    fn exact_cpus(&self, list: &CpuList, allowed: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let refuse = |reason: String| Err(ConfigError::new("cpus", list, reason));
        if list.0.is_empty() || list.0.len() > MAX_SHARDS {
            return refuse(format!("expected 1 to {MAX_SHARDS} CPUs"));
        }
        for (n, cpu) in list.0.iter().enumerate() {
            if !allowed.contains(cpu) {
                let allowed = CpuList(allowed.to_vec());
                return refuse(format!("CPU {cpu} is not one of those this process may run on: {allowed}"));
            }
            if !self.oversubscribe && list.0[..n].contains(cpu) {
                return refuse(format!("CPU {cpu} is named twice, which needs --oversubscribe"));
            }
        }
        Ok(list.0.clone())
    }

    fn counted_cpus(&self, cores: usize, allowed: &[usize]) -> Result<Vec<usize>, ConfigError> {
        let refuse = |reason: String| Err(ConfigError::new("cores", cores, reason));
        if !(1..=MAX_SHARDS).contains(&cores) {
            return refuse(format!("expected 1 to {MAX_SHARDS}"));
        }
        if cores > allowed.len() && !self.oversubscribe {
            return refuse(format!(
                "expected 1 to {}, the number of CPUs this process may run on ({}); more needs \
                 --oversubscribe",
                allowed.len(),
                CpuList(allowed.to_vec())
            ));
        }
        Ok(allowed.iter().copied().cycle().take(cores).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: [usize; 3] = [0, 2, 3];

    fn shards(cores: Option<usize>, cpus: Option<&str>, oversubscribe: bool) -> Result<Vec<usize>, String> {
        let cpus = cpus.map(|list| list.parse().unwrap());
        let config = Config { cores, cpus, oversubscribe, ..Config::default() };
        config.shard_cpus_of(&ALLOWED).map_err(|error| error.to_string())
    }

    #[test]
    fn shards_take_the_allowed_cpus() {
        assert_eq!(shards(None, None, false), Ok(vec![0, 2, 3]));
        assert_eq!(shards(Some(2), None, false), Ok(vec![0, 2]));
        assert_eq!(shards(Some(5), None, true), Ok(vec![0, 2, 3, 0, 2]));
        assert_eq!(shards(Some(1), Some("3,0"), false), Ok(vec![3, 0]));
        assert_eq!(shards(None, Some("2,2"), true), Ok(vec![2, 2]));
    }

    #[test]
    fn what_is_not_there_is_refused() {
        assert_eq!(
            shards(Some(4), None, false).unwrap_err(),
            "invalid value '4' for '--cores': expected 1 to 3, the number of CPUs this process may run on \
             (0,2-3); more needs --oversubscribe"
        );
        assert!(shards(Some(0), None, true).unwrap_err().contains("expected 1 to 1024"));
        assert!(shards(Some(1025), None, true).unwrap_err().contains("expected 1 to 1024"));
        assert_eq!(
            shards(None, Some("0-2"), true).unwrap_err(),
            "invalid value '0-2' for '--cpus': CPU 1 is not one of those this process may run on: 0,2-3"
        );
        assert!(shards(None, Some("0,0"), false).unwrap_err().contains("needs --oversubscribe"));
        assert!(Config::default().shard_cpus_of(&[]).is_err());
    }
}
