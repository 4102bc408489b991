// The worker of one sample in Container Apps, and what it needs: scheduler and task hub, model, registry, identity,
// logs, and for sample 03 a Redis. The only key is Redis's, in the worker's secrets; all else goes by identity.

param location string
param tags object
param principalId string
param sample string
param image string
param schedulerSku string
param modelName string
param modelVersion string
param withRedis bool = startsWith(sample, '03_')

var token = uniqueString(subscription().id, resourceGroup().id, location)
var placeholder = 'mcr.microsoft.com/azuredocs/containerapps-helloworld:latest'
var acrPull = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '7f951dda-4ed3-4680-a7ca-43fe172d538d')
var durableTaskDataContributor = subscriptionResourceId(
  'Microsoft.Authorization/roleDefinitions',
  '0ad04412-c4d5-4796-b79c-f76d14c8d402'
)
var cognitiveServicesOpenAIUser = subscriptionResourceId(
  'Microsoft.Authorization/roleDefinitions',
  '5e0bd9bd-7b93-4f28-af87-19fc36ad61bd'
)

// Scheduler --------------------------------------------------------------------------------------------------------

resource scheduler 'Microsoft.DurableTask/schedulers@2026-02-01' = {
  name: 'scheduler-${token}'
  location: location
  tags: tags
  properties: {
    ipAllowlist: ['0.0.0.0/0'] // every address may connect; the roles decide who gets in
    sku: schedulerSku == 'Dedicated' ? { name: 'Dedicated', capacity: 1 } : { name: 'Consumption' }
  }
}

resource taskHub 'Microsoft.DurableTask/schedulers/taskHubs@2026-02-01' = {
  parent: scheduler
  name: replace(sample, '_', '-') // each sample has its own
}

// Model ------------------------------------------------------------------------------------------------------------

resource openAI 'Microsoft.CognitiveServices/accounts@2025-06-01' = {
  name: 'openai-${token}'
  location: location
  tags: tags
  kind: 'OpenAI'
  sku: { name: 'S0' }
  properties: {
    customSubDomainName: 'openai-${token}'
    disableLocalAuth: true // identities only, no keys
    publicNetworkAccess: 'Enabled'
  }
}

resource chatModel 'Microsoft.CognitiveServices/accounts/deployments@2025-06-01' = {
  parent: openAI
  name: modelName
  sku: { name: 'GlobalStandard', capacity: 50 } // thousand tokens a minute
  properties: {
    model: { format: 'OpenAI', name: modelName, version: modelVersion }
  }
}

// Identity and roles -----------------------------------------------------------------------------------------------

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: 'worker-${token}'
  location: location
  tags: tags
}

resource workerPullsImages 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(registry.id, identity.id, acrPull)
  scope: registry
  properties: {
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: acrPull
  }
}

resource workerUsesTaskHub 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(taskHub.id, identity.id, durableTaskDataContributor)
  scope: taskHub
  properties: {
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: durableTaskDataContributor
  }
}

resource workerUsesModel 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(openAI.id, identity.id, cognitiveServicesOpenAIUser)
  scope: openAI
  properties: {
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: cognitiveServicesOpenAIUser
  }
}

resource personUsesTaskHub 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(principalId)) {
  name: guid(taskHub.id, principalId, durableTaskDataContributor)
  scope: taskHub
  properties: {
    principalId: principalId
    roleDefinitionId: durableTaskDataContributor
  }
}

resource personUsesModel 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(principalId)) {
  name: guid(openAI.id, principalId, cognitiveServicesOpenAIUser)
  scope: openAI
  properties: {
    principalId: principalId
    roleDefinitionId: cognitiveServicesOpenAIUser
  }
}

// Redis, for 03 ----------------------------------------------------------------------------------------------------

resource redis 'Microsoft.Cache/redisEnterprise@2025-07-01' = if (withRedis) {
  name: 'redis-${token}'
  location: location
  tags: tags
  sku: { name: 'Balanced_B0' }
  properties: {
    highAvailability: 'Disabled' // streams live ten minutes, and the whole answer arrives without them
    minimumTlsVersion: '1.2'
    publicNetworkAccess: 'Enabled'
  }
}

resource redisDatabase 'Microsoft.Cache/redisEnterprise/databases@2025-07-01' = if (withRedis) {
  parent: redis
  name: 'default'
  properties: {
    accessKeysAuthentication: 'Enabled'
    clientProtocol: 'Encrypted'
    clusteringPolicy: 'EnterpriseCluster' // the sample's client does not follow a cluster's redirections
    port: 10000
  }
}

var redisKey = withRedis ? redisDatabase!.listKeys().primaryKey : ''
var redisAddress = withRedis ? 'rediss://:${uriComponent(redisKey)}@${redis!.properties.hostName}:10000' : ''

// Worker -----------------------------------------------------------------------------------------------------------

resource registry 'Microsoft.ContainerRegistry/registries@2025-04-01' = {
  name: 'registry${token}'
  location: location
  tags: tags
  sku: { name: 'Basic' }
  properties: { adminUserEnabled: false }
}

resource logs 'Microsoft.OperationalInsights/workspaces@2023-09-01' = {
  name: 'logs-${token}'
  location: location
  tags: tags
  properties: {
    retentionInDays: 30
    sku: { name: 'PerGB2018' }
  }
}

resource appEnvironment 'Microsoft.App/managedEnvironments@2025-07-01' = {
  name: 'environment-${token}'
  location: location
  tags: tags
  properties: {
    appLogsConfiguration: {
      destination: 'log-analytics'
      logAnalyticsConfiguration: {
        customerId: logs.properties.customerId
        sharedKey: logs.listKeys().primarySharedKey
      }
    }
  }
}

resource worker 'Microsoft.App/containerApps@2025-07-01' = {
  name: 'worker'
  location: location
  tags: union(tags, { 'azd-service-name': 'worker' })
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identity.id}': {} }
  }
  properties: {
    environmentId: appEnvironment.id
    configuration: { // no ingress: a worker listens on no port
      registries: [{ server: registry.properties.loginServer, identity: identity.id }]
      secrets: withRedis ? [{ name: 'redis', value: redisAddress }] : []
    }
    template: {
      containers: [
        {
          name: 'worker'
          image: empty(image) ? placeholder : image
          resources: { cpu: json('0.5'), memory: '1Gi' }
          env: concat(
            [
              { name: 'AZURE_CLIENT_ID', value: identity.properties.clientId }
              { name: 'ENDPOINT', value: scheduler.properties.endpoint }
              { name: 'TASKHUB', value: taskHub.name }
              { name: 'AZURE_OPENAI_ENDPOINT', value: 'https://${openAI.name}.openai.azure.com' }
              { name: 'AZURE_OPENAI_CHAT_DEPLOYMENT_NAME', value: chatModel.name }
            ],
            withRedis ? [{ name: 'REDIS_CONNECTION_STRING', secretRef: 'redis' }] : []
          )
        }
      ]
      scale: {
        minReplicas: 1
        maxReplicas: 10
        rules: [
          for kind in ['Orchestration', 'Activity', 'Entity']: {
            name: toLower(kind)
            custom: {
              type: 'azure-durabletask-scheduler'
              identity: identity.id
              metadata: {
                endpoint: scheduler.properties.endpoint
                taskhubName: taskHub.name
                workItemType: kind
                maxConcurrentWorkItemsCount: '50'
              }
            }
          }
        ]
      }
    }
  }
  dependsOn: [workerPullsImages, workerUsesTaskHub, workerUsesModel]
}

output registryServer string = registry.properties.loginServer
output schedulerEndpoint string = scheduler.properties.endpoint
output taskHubName string = taskHub.name
output modelEndpoint string = 'https://${openAI.name}.openai.azure.com'
output modelDeployment string = chatModel.name
