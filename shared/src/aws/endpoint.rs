//! Endpoints of AWS services by region. The region's partition decides the domain, as in `partitions.json`, which all AWS
//! SDKs share.

/// The variant of a service's endpoint (`AWS_USE_FIPS_ENDPOINT`, `AWS_USE_DUALSTACK_ENDPOINT`).
#[derive(Debug, Clone, Copy, Default)]
pub struct Variants {
    pub fips: bool,
    pub dual_stack: bool,
}

/// A partition: the prefix of its regions, its domain, and the domain of its dual-stack endpoints.
struct Partition {
    prefix: &'static str,
    domain: &'static str,
    dual_stack_domain: &'static str,
}

/// The commercial partition, which unknown regions belong to.
const AWS: Partition = Partition { prefix: "", domain: "amazonaws.com", dual_stack_domain: "api.aws" };

const US_GOV: &str = "us-gov-";

/// The other partitions.
const PARTITIONS: [Partition; 7] = [
    Partition { prefix: US_GOV, ..AWS },
    Partition { prefix: "cn-", domain: "amazonaws.com.cn", dual_stack_domain: "api.amazonwebservices.com.cn" },
    Partition { prefix: "eusc-", domain: "amazonaws.eu", dual_stack_domain: "api.amazonwebservices.eu" },
    Partition { prefix: "us-iso-", domain: "c2s.ic.gov", dual_stack_domain: "api.aws.ic.gov" },
    Partition { prefix: "us-isob-", domain: "sc2s.sgov.gov", dual_stack_domain: "api.aws.scloud" },
    Partition { prefix: "eu-isoe-", domain: "cloud.adc-e.uk", dual_stack_domain: "api.cloud-aws.adc-e.uk" },
    Partition { prefix: "us-isof-", domain: "csp.hci.ic.gov", dual_stack_domain: "api.aws.hci.ic.gov" },
];

/// The URL of a service in a region, with a trailing slash. `service` is its name in host names.
pub fn of(service: &str, region: &str, Variants { fips, dual_stack }: Variants) -> String {
    let partition = PARTITIONS.iter().find(|partition| region.starts_with(partition.prefix)).unwrap_or(&AWS);
    // Most of GovCloud's usual endpoints are FIPS endpoints.
    let is_fips_anyway = partition.prefix == US_GOV && !dual_stack && service != "secretsmanager";
    let suffix = if fips && !is_fips_anyway { "-fips" } else { "" };
    // Endpoints of Secrets Manager are dual-stack under their usual names; in China, those without FIPS.
    let has_both = service == "secretsmanager"
        && (partition.domain == AWS.domain || (!fips && partition.domain == "amazonaws.com.cn"));
    let domain = if dual_stack && !has_both { partition.dual_stack_domain } else { partition.domain };
    format!("https://{service}{suffix}.{region}.{domain}/")
}
