{{- define "forebay.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "forebay.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "forebay.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "forebay.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Arguments: the root context and a component. */}}
{{- define "forebay.selector" -}}
app.kubernetes.io/name: {{ include "forebay.name" (index . 0) }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "forebay.labels" -}}
{{ include "forebay.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "forebay.image" -}}
{{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end -}}

{{- define "forebay.engine.image" -}}
{{ printf "%s:%s" .Values.engine.image.repository (default .Chart.AppVersion .Values.engine.image.tag) }}
{{- end -}}

{{- define "forebay.secret" -}}
{{ default (include "forebay.fullname" .) .Values.secrets.existingSecret }}
{{- end -}}

{{- define "forebay.engine.secret" -}}
{{ default (printf "%s-engine" (include "forebay.fullname" .)) .Values.engine.existingSecret }}
{{- end -}}

{{/* What the chart's own Secret holds, as YAML. */}}
{{- define "forebay.secretData" -}}
{{- $data := dict "DATABASE_URL" (required "secrets.databaseUrl or secrets.existingSecret is needed" .Values.secrets.databaseUrl) -}}
{{- with .Values.secrets.redisUrl }}{{ $_ := set $data "REDIS_URL" . }}{{ end -}}
{{- with .Values.secrets.inferenceUrl }}{{ $_ := set $data "INFERENCE_URL" . }}{{ end -}}
{{- with .Values.secrets.inferenceApiKey }}{{ $_ := set $data "INFERENCE_API_KEY" . }}{{ end -}}
{{- range $name, $value := .Values.secrets.extra }}{{ $_ := set $data $name $value }}{{ end -}}
{{- toYaml $data -}}
{{- end -}}

{{/* What the engines' own Secret holds, as YAML. */}}
{{- define "forebay.engine.secretData" -}}
{{- $data := dict -}}
{{- with .Values.engine.agentKey }}{{ $_ := set $data "FOREBAY_ENGINE_KEY" . }}{{ end -}}
{{- with .Values.engine.huggingFaceToken }}{{ $_ := set $data "HF_TOKEN" . }}{{ end -}}
{{- toYaml $data -}}
{{- end -}}

{{/* An annotation that changes with the agents' key, for those that ask agents. */}}
{{- define "forebay.engine.agentHash" -}}
{{- if and .Values.engine.enabled .Values.engine.agentKey (not .Values.engine.existingSecret) -}}
forebay/agent-key: {{ .Values.engine.agentKey | sha256sum }}
{{- end -}}
{{- end -}}

{{/* The engines' profile: the chart's part, then the user's over it. */}}
{{- define "forebay.engine.profile" -}}
{{- $own := dict "host" "0.0.0.0" "port" 30000 "cache_dir" "/var/cache/forebay-engine" "drain" (dict "grace_s" .Values.engine.drainSeconds) "load_timeout_s" .Values.engine.loadSeconds -}}
{{- toYaml (mustMergeOverwrite $own (deepCopy .Values.engine.profile)) -}}
{{- end -}}

{{/* The most engines there may be: each is an upstream of its own. */}}
{{- define "forebay.engine.most" -}}
{{- if .Values.engine.autoscaling.enabled -}}
{{ max 1 (int .Values.engine.autoscaling.maxReplicas) }}
{{- else -}}
{{ max 1 (int .Values.engine.replicas) }}
{{- end -}}
{{- end -}}

{{/* The gateway's configuration: the chart's part, then the user's over it. */}}
{{- define "forebay.config" -}}
{{- $config := dict
      "listen" (dict "http" "0.0.0.0:8080")
      "drain_s" .Values.gateway.drainSeconds
      "workers" .Values.gateway.workers
      "spool" (dict "dir" "/var/lib/forebay/spool")
      "log" (dict "format" "json")
      "expected_nodes" .Values.gateway.replicas -}}
{{- if .Values.gateway.grpc -}}
{{- $_ := set $config.listen "grpc" "0.0.0.0:50051" -}}
{{- end -}}
{{- if .Values.engine.enabled -}}
{{- $upstreams := dict -}}
{{- $name := printf "%s-engine" (include "forebay.fullname" .) -}}
{{- $cold := dict "hold" .Values.engine.hold "spill_after" .Values.engine.spillAfter -}}
{{- if eq .Values.engine.kind "StatefulSet" -}}
{{- range $i := until (int (include "forebay.engine.most" .)) -}}
{{- $url := printf "http://%s-%d.%s.%s.svc:30000" $name $i $name $.Release.Namespace -}}
{{- $upstream := dict "kind" $.Values.engine.profile.kind "url" $url "discover" true "cold" $cold "max_concurrency" $.Values.engine.maxConcurrency -}}
{{- $agent := dict "url" (printf "http://%s-%d.%s.%s.svc:30080" $name $i $name $.Release.Namespace) -}}
{{- if or $.Values.engine.agentKey $.Values.engine.existingSecret -}}
{{- $_ := set $agent "key" "${FOREBAY_ENGINE_KEY}" -}}
{{- end -}}
{{- $_ := set $upstream "agent" $agent -}}
{{- $_ := set $upstreams (printf "engine-%d" $i) $upstream -}}
{{- end -}}
{{- else -}}
{{- $url := printf "http://%s.%s.svc:30000" $name .Release.Namespace -}}
{{- $_ := set $upstreams "engine" (dict "kind" .Values.engine.profile.kind "url" $url "discover" true "cold" $cold) -}}
{{- end -}}
{{- $_ := set $config "upstreams" $upstreams -}}
{{- end -}}
{{- toYaml (mustMergeOverwrite $config (deepCopy .Values.config)) -}}
{{- end -}}

{{/* The port of one of the gateway's listeners, whoever has set it: (list . "http"). */}}
{{- define "forebay.port" -}}
{{- $listen := (include "forebay.config" (index . 0) | fromYaml).listen -}}
{{- regexFind "[0-9]+$" (get $listen (index . 1)) -}}
{{- end -}}

{{/* The file of forebay-engine autoscale: the chart's part, then the user's over it. */}}
{{- define "forebay.autoscale" -}}
{{- $scaling := .Values.engine.autoscaling -}}
{{- $full := include "forebay.fullname" . -}}
{{- $gateways := list -}}
{{- if not $scaling.config.gateways -}}
{{- if or (ne .Values.gateway.kind "StatefulSet") .Values.gateway.autoscaling.enabled -}}
{{- fail "engine.autoscaling reads every gateway by its name: set gateway.kind=StatefulSet and gateway.autoscaling.enabled=false, or name them in engine.autoscaling.config.gateways" -}}
{{- end -}}
{{- $port := include "forebay.port" (list . "http") -}}
{{- range $i := until (int .Values.gateway.replicas) -}}
{{- $gateways = append $gateways (printf "http://%s-%d.%s-pods.%s.svc:%s" $full $i $full $.Release.Namespace $port) -}}
{{- end -}}
{{- end -}}
{{- $upstreams := list "engine" -}}
{{- $engines := list -}}
{{- if eq .Values.engine.kind "StatefulSet" -}}
{{- $upstreams = list -}}
{{- range $i := until (int (include "forebay.engine.most" .)) -}}
{{- $upstreams = append $upstreams (printf "engine-%d" $i) -}}
{{- $engine := dict "agent" (printf "http://%s-engine-%d.%s-engine.%s.svc:30080" $full $i $full $.Release.Namespace) -}}
{{- if or $.Values.engine.agentKey $.Values.engine.existingSecret -}}
{{- $_ := set $engine "key" "${FOREBAY_ENGINE_KEY}" -}}
{{- end -}}
{{- $engines = append $engines $engine -}}
{{- end -}}
{{- end -}}
{{- $limits := merge (dict "min" $scaling.minReplicas "max" $scaling.maxReplicas) (deepCopy $scaling.limits) -}}
{{- $model := dict "upstreams" $upstreams "engines" $engines "capacity" $scaling.capacity "limits" $limits -}}
{{- $name := default .Values.engine.profile.model .Values.engine.profile.name -}}
{{- toYaml (mustMergeOverwrite (dict "gateways" $gateways "models" (dict $name $model)) (deepCopy $scaling.config)) -}}
{{- end -}}

{{/* How long a gateway's pod may take to end, in seconds. */}}
{{- define "forebay.grace" -}}
{{- $config := include "forebay.config" . | fromYaml -}}
{{- add .Values.gateway.preStopSeconds (ceil (default 0 $config.drain_notice_s)) (ceil $config.drain_s) 30 -}}
{{- end -}}

{{/* How long an engine's pod may take to end, in seconds: its profile may say how. */}}
{{- define "forebay.engine.grace" -}}
{{- $profile := include "forebay.engine.profile" . | fromYaml -}}
{{- $drain := default dict $profile.drain -}}
{{- add (ceil (dig "grace_s" 120 $drain)) (ceil (dig "kill_s" 10 $drain)) 20 -}}
{{- end -}}

{{/* Of the configuration what a running gateway does not take over: a change of it restarts. */}}
{{- define "forebay.config.restart" -}}
{{- $config := include "forebay.config" . | fromYaml -}}
{{- pick $config "listen" "database_url" "redis_url" "expected_nodes" "node" "spool" "telemetry" "workers" "limits" | toJson | sha256sum -}}
{{- end -}}

{{- define "forebay.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "forebay.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Environment of everything that runs the gateway's image. */}}
{{- define "forebay.envFrom" -}}
- secretRef:
    name: {{ include "forebay.secret" . }}
{{- end -}}

{{- define "forebay.env" -}}
- name: FOREBAY_CONFIG
  value: /etc/forebay/forebay.yaml
{{- if not (hasKey .Values.gateway.env "FOREBAY_GRPC") }}
# The image's would go before the file.
- name: FOREBAY_GRPC
  value: ""
{{- end }}
{{- if and .Values.engine.enabled (or .Values.engine.agentKey .Values.engine.existingSecret) }}
- name: FOREBAY_ENGINE_KEY
  valueFrom:
    secretKeyRef:
      name: {{ include "forebay.engine.secret" . }}
      key: FOREBAY_ENGINE_KEY
{{- end }}
{{- range $name, $value := .Values.gateway.env }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/* A job's pod with the gateway's image. Arguments: the root context, component, command, resources. */}}
{{- define "forebay.jobPod" -}}
{{- $root := index . 0 -}}
metadata:
  labels:
    {{- include "forebay.labels" (list $root (index . 1)) | nindent 4 }}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- include "forebay.podSecurity" $root | nindent 4 }}
  containers:
    - name: {{ index . 1 }}
      image: {{ include "forebay.image" $root }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args: {{ index . 2 | toJson }}
      envFrom:
        {{- index . 4 | nindent 8 }}
      {{- if index . 5 }}
      env:
        {{- include "forebay.env" $root | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "forebay.containerSecurity" $root | nindent 8 }}
      resources:
        {{- toYaml (index . 3) | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: state, mountPath: /var/lib/forebay}
        {{- if index . 5 }}
        - {name: config, mountPath: /etc/forebay, readOnly: true}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir: {medium: Memory, sizeLimit: 64Mi}
    - name: state
      emptyDir: {sizeLimit: 64Mi}
    {{- if index . 5 }}
    - name: config
      configMap:
        name: {{ include "forebay.fullname" $root }}
    {{- end }}
{{- end -}}
