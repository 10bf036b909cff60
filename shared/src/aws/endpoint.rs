//! Endpoints of AWS services by region. The region's partition decides the domain, as in `partitions.json`, which all AWS
//! SDKs share.

/// Which of a service's endpoints is meant (`AWS_USE_FIPS_ENDPOINT`, `AWS_USE_DUALSTACK_ENDPOINT`).
#[derive(Debug, Clone, Copy, Default)]
pub struct Variants {
    pub fips: bool,
    pub dual_stack: bool,
}

/// A partition: how its regions begin, its domain, and that of its dual-stack endpoints.
struct Partition {
    prefix: &'static str,
    domain: &'static str,
    dual_stack_domain: &'static str,
    /// Services whose usual endpoint is the FIPS endpoint too.
    fips_without_suffix: &'static [&'static str],
}

/// The commercial partition, and that of regions nobody knows yet.
const AWS: Partition =
    Partition { prefix: "", domain: "amazonaws.com", dual_stack_domain: "api.aws", fips_without_suffix: &[] };

/// The other partitions.
const PARTITIONS: [Partition; 7] = [
    Partition { prefix: "us-gov-", fips_without_suffix: &["logs", "sqs"], ..AWS },
    Partition {
        prefix: "cn-",
        domain: "amazonaws.com.cn",
        dual_stack_domain: "api.amazonwebservices.com.cn",
        fips_without_suffix: &[],
    },
    Partition {
        prefix: "eusc-",
        domain: "amazonaws.eu",
        dual_stack_domain: "api.amazonwebservices.eu",
        fips_without_suffix: &[],
    },
    Partition {
        prefix: "us-iso-",
        domain: "c2s.ic.gov",
        dual_stack_domain: "api.aws.ic.gov",
        fips_without_suffix: &["sqs"],
    },
    Partition {
        prefix: "us-isob-",
        domain: "sc2s.sgov.gov",
        dual_stack_domain: "api.aws.scloud",
        fips_without_suffix: &["sqs"],
    },
    Partition {
        prefix: "eu-isoe-",
        domain: "cloud.adc-e.uk",
        dual_stack_domain: "api.cloud-aws.adc-e.uk",
        fips_without_suffix: &[],
    },
    Partition {
        prefix: "us-isof-",
        domain: "csp.hci.ic.gov",
        dual_stack_domain: "api.aws.hci.ic.gov",
        fips_without_suffix: &["sqs"],
    },
];

/// The URL of a service in a region, with a trailing slash. `service` is its name in host names.
pub fn of(service: &str, region: &str, Variants { fips, dual_stack }: Variants) -> String {
    let partition = PARTITIONS.iter().find(|partition| region.starts_with(partition.prefix)).unwrap_or(&AWS);
    let domain = if dual_stack { partition.dual_stack_domain } else { partition.domain };
    let suffix = if fips && (dual_stack || !partition.fips_without_suffix.contains(&service)) { "-fips" } else { "" };
    format!("https://{service}{suffix}.{region}.{domain}/")
}
